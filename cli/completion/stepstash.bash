# SPDX-License-Identifier: Apache-2.0
# bash completion for stepstash(1)
_stepstash() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --socket | --timeout) ((i++)) ;; # its value is no command
      -*) ;;
      *)
        command=${COMP_WORDS[i]}
        break
        ;;
    esac
  done
  COMPREPLY=()
  case $before in
    --socket | -o | --output)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return
      ;;
    --sort)
      mapfile -t COMPREPLY < <(compgen -W 'build bytes time' -- "$word")
      return
      ;;
    --build | --source | --timeout | --wait | --at | --older-than) return ;;
  esac
  if [[ $word == -* ]]; then
    # The command knows its options best.
    mapfile -t COMPREPLY < <(compgen -W "$(stepstash ${command:+"$command"} --help 2> /dev/null |
      grep -oE -- '^  (-[a-z], )?--[a-z-]+' | tr ',' '\n' | tr -d ' ' | sort -u)" -- "$word")
  elif [[ -z $command || $command == help ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(_stepstash_commands)" -- "$word")
  elif [[ $command == set ]]; then
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  fi
}
_stepstash_commands() { stepstash --help 2> /dev/null | sed -n '/^Subcommands:/,/^$/s/^  \([a-z]*\) .*/\1/p'; }
complete -o filenames -F _stepstash stepstash
