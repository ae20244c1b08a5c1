"""kubectl shoal completion: the script that makes a shell complete `kubectl-shoal`.

kubectl completes `kubectl shoal` by itself, through a program called `kubectl_complete-shoal` that stands on the PATH
beside the plugin (`--kubectl` prints it). The shells' scripts are for the plugin under its own name.
"""

from __future__ import annotations

import argparse

from kubectl_shoal import output

KUBECTL = """\
#!/bin/sh
# kubectl completes `kubectl shoal ...` by calling this; it belongs on the PATH, beside kubectl-shoal.
exec kubectl-shoal __complete "$@"
"""
BASH = """\
# source <(kubectl-shoal completion bash)
_kubectl_shoal() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        case "$line" in
            :4) compopt +o default ;;
            :*) ;;
            *) COMPREPLY+=("${line%%$'\\t'*}") ;;
        esac
    done < <(kubectl-shoal __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]] && compopt -o nospace
    # Readline takes a colon for the end of a word.
    type __ltrim_colon_completions >/dev/null 2>&1 && __ltrim_colon_completions "${COMP_WORDS[COMP_CWORD]}"
}
complete -o default -F _kubectl_shoal kubectl-shoal
"""
ZSH = """\
#compdef kubectl-shoal
# source <(kubectl-shoal completion zsh)
_kubectl_shoal() {
    local line
    local -a found
    while IFS= read -r line; do
        [[ $line == :* ]] && continue
        found+=("${${line%%$'\\t'*}//:/\\\\:}${${(M)line:#*$'\\t'*}:+:${line#*$'\\t'}}")
    done < <(kubectl-shoal __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    _describe -V 'kubectl shoal' found
}
compdef _kubectl_shoal kubectl-shoal
"""
FISH = """\
# kubectl-shoal completion fish | source
function __kubectl_shoal_complete
    set -l words (commandline -opc) (commandline -ct)
    kubectl-shoal __complete $words[2..-1] 2>/dev/null | string match --invert --regex '^:[0-9]+$'
end
complete -c kubectl-shoal -f -a '(__kubectl_shoal_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("shell", metavar="SHELL", nargs="?", choices=tuple(SCRIPTS), help="bash, zsh or fish")
    kind.add_argument("--kubectl", action="store_true", help="print kubectl_complete-shoal, which kubectl itself calls")


def run(arguments: argparse.Namespace) -> int:
    output.write(KUBECTL if arguments.kubectl else SCRIPTS[arguments.shell])
    return 0
