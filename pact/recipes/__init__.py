"""The method on real models: settings in one file each, and what is needed around them.

configs/      one YAML file per model: its sizes, and a section for every command
architecture  a model's sizes  ->  its config, its number of weights
recipe        a YAML file  ->  checked settings; the files of the commands
memory        settings and sizes  ->  what a training step takes, part by part
data          public prompts and tasks  ->  the .jsonl files that the commands read
commands      a recipe  ->  every command of a run, from nothing to numbers
tiny          a family  ->  a random model of it, its tokenizer, and a guard
dry_run       all stages of a recipe on such a model, in seconds on a CPU
"""
