# SPDX-License-Identifier: Apache-2.0
# Run by CPack when each component's files lie in a tree of their own, before they become packages: adds and changes what
# debhelper would.

# compressed SOURCE TARGET: as Debian's policy wants documents, without name and time.
function(compressed source target)
  execute_process(COMMAND gzip -9 -n -c "${source}" OUTPUT_FILE "${target}" COMMAND_ERROR_IS_FATAL ANY)
  file(CHMOD "${target}" PERMISSIONS OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
endfunction()

set(source "${CPACK_STEPSTASH_SOURCE}")
set(binary "${CPACK_STEPSTASH_BINARY}")
set(staged "${CPACK_TEMPORARY_INSTALL_DIRECTORY}")

file(GLOB library "${staged}/lib/usr/lib/*-linux-*/libstepstash.so.0")
if(NOT library)
  message(FATAL_ERROR "this tree was not configured for packages, with a prefix of /usr: scripts/packages does it")
endif()

# The time is SOURCE_DATE_EPOCH where that is set (scripts/packages), so that packages of one state are the same.
string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
string(TIMESTAMP year "%Y" UTC)
configure_file("${source}/packaging/changelog.in" "${binary}/changelog" @ONLY)
configure_file("${source}/packaging/copyright.in" "${binary}/copyright" @ONLY)

foreach(component package IN ZIP_LISTS CPACK_COMPONENTS_ALL CPACK_STEPSTASH_PACKAGES)
  set(usr "${staged}/${component}/usr")
  set(documents "${usr}/share/doc/${package}")
  file(MAKE_DIRECTORY "${documents}")
  file(COPY "${binary}/copyright" DESTINATION "${documents}")
  compressed("${binary}/changelog" "${documents}/changelog.Debian.gz")
  compressed("${source}/CHANGELOG.md" "${documents}/changelog.gz")

  file(GLOB pages "${usr}/share/man/man*/*.[1-8]")
  foreach(page IN LISTS pages)
    compressed("${page}" "${page}.gz")
    file(REMOVE "${page}")
  endforeach()

  if(EXISTS "${source}/packaging/${package}/lintian-overrides")
    file(MAKE_DIRECTORY "${usr}/share/lintian/overrides")
    configure_file("${source}/packaging/${package}/lintian-overrides" "${usr}/share/lintian/overrides/${package}" COPYONLY)
  endif()
endforeach()

file(GLOB programs "${staged}/daemon/usr/sbin/*" "${staged}/cli/usr/bin/*" "${staged}/lib/usr/lib/*/*.so.*")
list(FILTER programs EXCLUDE REGEX "\\.so\\.[0-9]+$")  # a link
execute_process(
  COMMAND strip --strip-unneeded --remove-section=.comment --remove-section=.note ${programs} COMMAND_ERROR_IS_FATAL ANY)

# The example is all comments: as the configuration, it says what there is to set and changes nothing.
file(MAKE_DIRECTORY "${staged}/daemon/etc/stepstash")
file(RENAME "${staged}/daemon/usr/share/doc/stepstash/stepstashd.conf.example" "${staged}/daemon/etc/stepstash/stepstashd.conf")
file(REMOVE_RECURSE "${staged}/daemon/usr/share/doc/stepstash")

# Fails when the library has other symbols than the list. dpkg-gensymbols of Debian 13 wants a source package around it.
file(WRITE "${binary}/debian/control" "Source: stepstash\n\nPackage: libstepstash0\nArchitecture: any\n")
execute_process(
  COMMAND dpkg-gensymbols -q -c4 -plibstepstash0 -v${CPACK_STEPSTASH_UPSTREAM_VERSION} -P${staged}/lib
    -I${source}/packaging/libstepstash0/symbols.in -O${binary}/libstepstash0/symbols
  WORKING_DIRECTORY "${binary}" OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "packaging/libstepstash0/symbols.in is not what libstepstash.so.0 exports:\n${said}")
endif()
