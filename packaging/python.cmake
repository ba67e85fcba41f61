# SPDX-License-Identifier: Apache-2.0
# Installs the Python package as Debian's are: the modules and their .dist-info, in which Buildbot finds its plugins.
# Debian's own interpreter makes it: it has the setuptools that scripts/packages.txt installs.
find_program(PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH REQUIRED)
set(modules "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/python3/dist-packages")
file(REMOVE_RECURSE "${STEPSTASH_SCRATCH}")
# Of a copy, for setuptools writes into the tree that it builds.
file(COPY "${STEPSTASH_PYTHON_SOURCE}/pyproject.toml" "${STEPSTASH_PYTHON_SOURCE}/stepstash"
  DESTINATION "${STEPSTASH_SCRATCH}" PATTERN __pycache__ EXCLUDE)
file(MAKE_DIRECTORY "${modules}")
execute_process(
  COMMAND ${PYTHON} -B -I -c "import sys, zipfile, setuptools.build_meta
modules = sys.argv[1]  # which setuptools changes
zipfile.ZipFile('wheel/' + setuptools.build_meta.build_wheel('wheel')).extractall(modules)" "${modules}"
  WORKING_DIRECTORY "${STEPSTASH_SCRATCH}"
  OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "setuptools failed (${failed}):\n${said}")
endif()
set(information "${modules}/stepstash-${STEPSTASH_VERSION}.dist-info")
if(NOT EXISTS "${information}/entry_points.txt")
  message(FATAL_ERROR "python/pyproject.toml has another version than ${STEPSTASH_VERSION}")
endif()
# What is installed is in dpkg's list; pip keeps its hands off what has no RECORD.
file(REMOVE "${information}/RECORD")
file(WRITE "${information}/INSTALLER" "debian\n")
