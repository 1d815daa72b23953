"""The commands of `halfbridge`, a module each: `add(commands)` gives the command its parser, which knows what to run."""
