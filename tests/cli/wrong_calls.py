"""Calls that must be refused, as text: two lines each.

The first line is the call, in a folder of `wrong_files`; the second is a piece of the answer that
says what was wrong, and one that says what to do. A call may begin with a whole one of WHOLE, whose
flags the later ones override. {red} is a terminal's escape for red, {half} half of a surrogate
pair, {zero} the character of that code, {many} a number of 400 digits, and {deep} lists in lists.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from tests.cli.wrong_files import ESCAPE

WHOLE = {
    "TRAIN": "train --model ./model --train-file train.jsonl --tokens tokens --output-dir out "
    "--max-steps 1 --no-cache",
    "CACHE": "cache --model ./model --train-file train.jsonl --tokens tokens --output-dir out",
    "DISCOVER": "discover --aligned ./model --base ./base --data train.jsonl --output out",
    "SHOW": "show --tokens tokens --tokenizer ./model",
    "EVALUATE": "evaluate --model ./model --harmful prompts.jsonl --max-new-tokens 2 "
    "--output-dir out",
    "REFUSALS": "refusals --model ./model --prompts prompts.jsonl --output out.jsonl "
    "--max-new-tokens 2",
    "MERGE": "merge --adapters run --output-dir out",
    "CONVERT": "convert-tokens --input released.pt --output out",
    "PLAN": "plan ./model --device cpu",
    "DEMO": "demo --output-dir out --cache-dir cached",
    "DATA": "recipe data harmbench --source-file harmbench.jsonl --output out.jsonl",
}
STANDS_FOR = {
    "red": ESCAPE,
    "half": "\udcff",
    "zero": "\0",
    "many": "1" * 400,
    "deep": "[" * 30_000,
}


class WrongCall(NamedTuple):
    """A call and what its refusal says."""

    text: str
    cause: str
    fix: str

    @property
    def argv(self) -> list[str]:
        """The call's words."""
        first, _, rest = self.text.partition(" ")
        words = shlex.split(f"{WHOLE.get(first, first)} {rest}")
        for name, meant in STANDS_FOR.items():
            words = [word.replace("{" + name + "}", meant) for word in words]
        return words


def read(table: str) -> list[WrongCall]:
    """The calls of a table."""
    lines = [line.strip() for line in table.strip().splitlines()]
    pieces = [line.split(" => ") for line in lines[1::2]]
    return [WrongCall(text, *both) for text, both in zip(lines[::2], pieces, strict=True)]


FLAGS = """
trian
    no command 'trian' => did you mean 'train'?
'tra{red}in'
    no command 'tra\\x1b[31min' => did you mean 'train'?
'tra{half}in'
    no command 'tra\\udcffin' => did you mean 'train'?
train
    --model, --train-file, --output-dir must be given => as a flag or in --config
evaluate --config empty.yaml
    --model, --output-dir must be given => as a flag or in --config
cache --nowhere 1
    Unrecognized options: --nowhere, 1. => pact cache --help
DISCOVER --learning-rate 1
    Unrecognized options: --learning-rate, 1. => pact discover --help
train --tyro-print-completion nowhere
    --tyro-print-completion must be of => bash, zsh, tcsh, fish, got nowhere
MERGE --top-k 5
    Unrecognized options: --top-k, 5. => pact merge --help
demo extra
    Unrecognized options: extra. => pact demo --help
TRAIN '--{red}'
    Unrecognized options: --\\x1b[31m. => pact train --help
TRAIN --epoch 1
    Unrecognized options: --epoch, 1. => Perhaps you meant: --epochs INT Passes over the data
TRAIN --epochs
    Missing value for argument '--epochs' => pact train --help
TRAIN --epochs many
    Error parsing --epochs: invalid literal for int() with base 10: 'many'. => --epochs INT Passes
TRAIN --max-steps 1.5
    Error parsing --max-steps: invalid literal for int() with base 10: '1.5' => --max-steps INT|none
TRAIN --epochs 1.5
    Error parsing --epochs: invalid literal for int() with base 10: '1.5' => pact train --help
TRAIN --learning-rate quick
    Error parsing --learning-rate: could not convert string to float: 'quick' => pact train --help
TRAIN --resume yes
    Unrecognized options: yes. => pact train --help
TRAIN --method '{red}'
    invalid choice '\\x1b[31m' for argument '--method' => one of ('pact', 'plain')
TRAIN --quantize 3bit
    invalid choice '3bit' for argument '--quantize' => one of ('4bit', '8bit', 'none')
TRAIN --no-epochs
    Unrecognized options: --no-epochs. => Perhaps you meant: --epochs INT
DISCOVER --dtype fp8
    invalid choice 'fp8' for argument '--dtype' => one of ('fp32', 'bf16', 'fp16')
PLAN --device tpu
    invalid choice 'tpu' for argument '--device' => one of ('a100', 'h100'
TRAIN --config key.yaml --config type.yaml
    must be given once, got two => put both files' settings into one
TRAIN --chat-template-kwargs '[1]'
    got '[1]' => must be a JSON object
TRAIN --chat-template-kwargs '{"a": NaN}'
    got {'a': nan} => finite numbers
TRAIN --columns {deep}
    must not be nested deeper => flatten it
EVALUATE --columns '{"nowhere": "a"}'
    got 'nowhere' => columns maps names of messages
TRAIN --optimizer nowhere
    optimizer 'nowhere' cannot be had => transformers knows adamw_torch
TRAIN --report-to nowhere
    got 'nowhere' => pip install it
EVALUATE --judge nowhere
    got 'nowhere' => judge must be one of
TRAIN --eval-every 3
    eval_every is of evaluations => give eval_file, or leave it unset
EVALUATE --reference ./base
    without drift => give conversations as drift, or leave it out
TRAIN --subset main
    got subset='main' => a file has no subsets
recipe nowhere
    no action 'nowhere' => they are list, show, plan
recipe dryrun
    no action 'dryrun' => did you mean 'dry-run'?
recipe list all
    got all => list takes nothing
recipe show 'x{red}'
    got 'x\\x1b[31m' => a recipe is one of
recipe commands
    --name must be given => as a flag or in --config
recipe data nowhere --output out.jsonl
    got 'nowhere' => name must be one of advbench
"""

NUMBERS = """
TRAIN --learning-rate nan
    got nan => learning_rate must be finite
TRAIN --learning-rate inf
    got inf => learning_rate must be finite
TRAIN --learning-rate -1
    got -1.0 => learning_rate must be positive
TRAIN --weight-decay inf
    got inf => weight_decay must be finite
TRAIN --warmup-ratio 2
    got 2.0 => warmup_ratio must be in [0, 1]
TRAIN --epochs 99999999999999999999
    got 99999999999999999999 => epochs must be at most
TRAIN --micro-batch-size 9
    got 9 => from 1 to batch_size=8
TRAIN --seed -1
    got -1 => seed must be at least 0
TRAIN --max-length 1
    got 1 => max_length must be at least 2
TRAIN --lora-alpha 1000000000000000000000000000000
    got 1000000000000000000000000000000 => lora_alpha must be at most
TRAIN --lora-r 99999999999
    got 99999999999 => lora_r must be at most
TRAIN --kl-weight nan
    got nan => kl_weight must be finite
CACHE --kl-step-tau -1
    got -1.0 => kl_step_tau must be at least
DISCOVER --temperature inf
    got inf => temperature must be positive and finite
DISCOVER --top-k -5
    got -5 => top_k must be at least 2
EVALUATE --max-new-tokens 0
    got 0 => max_new_tokens must be at least 1
REFUSALS --batch-size -1
    got -1 => batch_size must be at least 1
PLAN --answer-share nan
    got nan => answer_share must be finite
PLAN --sequences 99999999999999999999
    got 99999999999999999999 => sequences must be at most
DEMO --harmful-share nan
    got nan => harmful_share must be finite
DEMO --learning-rate inf
    got inf => learning_rate must be finite
recipe plan qwen2.5-7b --max-length -1
    got -1 => max_length must be at least 2
"""

SETTINGS = """
TRAIN --config missing.yaml
    missing.yaml => does not exist
TRAIN --config notes.txt/run.yaml
    notes.txt/run.yaml => does not exist
TRAIN --config ''
    got an empty text => must be a name or a path
TRAIN --config '~nosuchuser/run.yaml'
    got ~nosuchuser/run.yaml => write the folder out
TRAIN --config 'a{zero}b'
    got 'a\\x00b' => take them out
TRAIN --config list.yaml
    got a list => list.yaml must map names to values
TRAIN --config key.yaml
    unknown key 'learning_rat' in key.yaml => the nearest is 'learning_rate'
TRAIN --config escaped.yaml
    unknown key '\\x1b[31mred' in escaped.yaml => the nearest is
TRAIN --config type.yaml
    got 'many' => epochs in type.yaml must be int
TRAIN --config twice.yaml
    the key 'epochs' stands twice => leave one of them
TRAIN --config tab.yaml
    found character '\\t' => line 2, column 1
TRAIN --config open.yaml
    expected ',' or ']' => line 2, column 1
TRAIN --config tag.yaml
    os.getcwd => must be YAML
TRAIN --config anchor.yaml
    found undefined alias 'nowhere' => line 1, column 8
TRAIN --config laughs.yaml
    *a0 is of a list or mapping => write it out
TRAIN --config deep.yaml
    more than 100 deep => line 1, column 108
TRAIN --config unhashable.yaml
    found unhashable key => line 1, column 3
TRAIN --config escape.yaml
    unacceptable character => must be YAML
TRAIN --config day.yaml
    datetime.date(2024, 7, 1) => put a date in quotes
TRAIN --config latin.yaml
    can't decode byte 0xe9 => latin.yaml must be YAML
TRAIN --config binary.yaml
    can't decode byte 0x80 => binary.yaml must be YAML
TRAIN --config number.yaml
    5000 digits => number.yaml must be YAML
recipe show ./key.yaml
    unknown key 'learning_rat' => the nearest is
recipe dry-run ./list.yaml
    got a list => must map names to values
recipe plan ./twice.yaml
    stands twice => leave one of them
recipe write ./lines.yaml --output-dir out
    got 'a\\nrm b' => must be one line
recipe commands missing.yaml
    got 'missing.yaml' => a recipe is one of
"""
