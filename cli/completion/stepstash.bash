# bash completion for stepstash(1)
_stepstash() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      -*) ;;
      *)
        command=${COMP_WORDS[i]}
        break
        ;;
    esac
  done
  COMPREPLY=()
  if [[ -z $command ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(_stepstash_commands) --help --version" -- "$word")
    return
  fi
  case $before in
    --socket | -o | --output)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return
      ;;
    --build | --source | --timeout | --wait | --at | --older-than) return ;;
  esac
  if [[ $word == -* ]]; then
    # The command knows its options best.
    mapfile -t COMPREPLY < <(compgen -W "$(stepstash "$command" --help 2> /dev/null | grep -oE -- '(^|[ ,])--?[a-z][a-z-]*' |
      tr -d ' ,' | sort -u)" -- "$word")
  elif [[ $command == set ]]; then
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  fi
}
_stepstash_commands() { stepstash --help 2> /dev/null | sed -n '/^Subcommands:/,/^$/s/^  \([a-z]*\) .*/\1/p'; }
complete -o filenames -F _stepstash stepstash
