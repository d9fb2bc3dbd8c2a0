"""Calls that name a wrong file, as `tests.cli.wrong_calls` writes them."""

from __future__ import annotations

PATHS = """
TRAIN --model ./missing
    model folder ./missing does not exist => give a folder with config.json, or a hub name
TRAIN --model notes.txt
    got the file notes.txt => a model must be a folder or a hub name
TRAIN --model '{red}'
    model '\\x1b[31m' is neither => check the name, or give the path of a folder
EVALUATE --model ''
    got an empty text => --model must be a name or a path
PLAN --model '~nosuchuser/model'
    got ~nosuchuser/model => write the folder out
EVALUATE --judge 'guard:~nosuchuser/guard'
    got ~nosuchuser/guard => write the folder out
TRAIN --train-file './{half}'
    got './\\udcff' => give the file or folder another name
TRAIN --train-file ./missing.jsonl
    data file ./missing.jsonl does not exist => does not exist
TRAIN --train-file notes.txt
    got notes.txt => a data file must end in .jsonl
REFUSALS --prompts ./empty
    got none in empty => must hold a data set
SHOW --tokens model
    safety-token file model does not exist => run `pact discover` first
CONVERT --input empty
    released file empty does not exist => give the .pt file
MERGE --adapters ./model
    got ./model => give the output_dir of a run that trained adapters
DATA --source-file ./missing.csv
    source_file ./missing.csv does not exist => name a copy that is there
DATA --without missing.jsonl
    prompt file missing.jsonl does not exist => fetch it first
TRAIN --output-dir model
    got model, which is its model => name another folder
TRAIN --output-dir link --resume
    got link, which is its model => name another folder
TRAIN --output-dir train.jsonl
    got train.jsonl, which is its train_file => name another folder
TRAIN --output-dir ./base/checkpoints/out --model ./base
    which is of its model => name another folder
TRAIN --train-file rows --output-dir rows/out
    which is of its train_file => name another folder
TRAIN --model run --output-dir model --resume
    got model, which is its model's base => name another folder
TRAIN --output-dir full
    got full with files in it => name another folder
TRAIN --output-dir notes.txt/out
    notes.txt: Not a directory => name another
TRAIN --output-dir '~nosuchuser/out'
    got ~nosuchuser/out => write the folder out
TRAIN --output-dir ''
    got an empty text => --output-dir must be a name or a path
TRAIN --output-dir 'a{zero}b'
    got 'a\\x00b' => take them out
TRAIN --dry-run --output-dir notes.txt/out
    notes.txt: Not a directory => name another
TRAIN --cache --cache-dir cached --output-dir cached
    got cached, which is its cache_dir => name another folder
TRAIN --cache --cache-dir notes.txt/cache
    notes.txt is a file => set cache_dir
CACHE --cache-dir notes.txt
    notes.txt is a file => set cache_dir
TRAIN --reference-model ./missing
    model folder ./missing does not exist => give a folder with config.json, or a hub name
DISCOVER --output train.jsonl --overwrite
    got train.jsonl, which is data => name another file
DISCOVER --output model
    got a folder => name a file in it
DISCOVER --output notes.txt/out
    notes.txt: Not a directory => name another
EVALUATE --output-dir model
    got model => must be absent or an empty folder
EVALUATE --output-dir notes.txt/out
    notes.txt: Not a directory => name another
REFUSALS --output prompts.jsonl --overwrite
    got prompts.jsonl, which is prompts => name another file
REFUSALS --output train.jsonl
    output train.jsonl must be a new file => name another, or set overwrite
REFUSALS --output out.txt
    got 'out.txt' => output must be a .jsonl file
MERGE --output-dir run
    got run => must be absent or an empty folder
MERGE --output-dir notes.txt/out
    notes.txt: Not a directory => name another
CONVERT --output released.pt --overwrite
    got released.pt, which is input => name another file
CONVERT --output tokens
    output tokens must be a new file => set overwrite
SHOW --plot tokens
    plot tokens must be a new file => name another
SHOW --plot notes.txt/plot.png
    notes.txt: Not a directory => name another
DEMO --output-dir notes.txt
    got the file notes.txt => output_dir must be a folder
DEMO --cache-dir notes.txt/cache
    notes.txt: Not a directory => name another
DATA --output harmbench.jsonl --overwrite
    which is source_file => name another file
DATA --output train.jsonl
    output train.jsonl must be a new file => name another, or set overwrite
DATA --output notes.txt/out.jsonl
    notes.txt: Not a directory => name another
recipe write gemma-2-9b --output-dir notes.txt/out
    notes.txt: Not a directory => name another
recipe write gemma-2-9b --output-dir written
    written/run.sh => output_dir must hold no run.sh
TRAIN --output-dir run
    got run with files in it => --resume
TRAIN --output-dir full --resume
    files of no run in it (notes.txt) => name the folder of the run, or an empty one
TRAIN --output-dir run --resume --learning-rate 1e-3
    got learning_rate=0.001 where => give that, or name another folder
"""

CONTENTS = """
TRAIN --train-file blank.jsonl
    got none in blank.jsonl => must hold at least one row
TRAIN --train-file columns.jsonl
    got the keys ['label', 'text'] => --columns gives others these names
TRAIN --train-file silent.jsonl
    no assistant turn in the data => has a message with role 'assistant' or a completion
TRAIN --train-file role.jsonl
    got '\\x1b[31mcook' => role must be one of
TRAIN --train-file beyond.jsonl
    got 1 to 1000000000 => every token id must be in [0, 320)
TRAIN --train-file negative.jsonl
    got -5 to 1 => every token id must be in [0, 320)
TRAIN --eval-file cut.jsonl
    line 1 => every line must be one JSON object
TRAIN --refusals numbers.jsonl
    got int => must be an object
EVALUATE --harmful deep.jsonl
    line 1 => flatten it
EVALUATE --heldout latin.jsonl
    byte 0xe9 => must be UTF-8 text
REFUSALS --prompts binary.jsonl
    byte 0x80 => must be UTF-8 text
DISCOVER --data object.json
    got a dict => wrap it in [...]
DISCOVER --data bad.parquet
    bad.parquet => is not a whole Parquet file
DISCOVER --data uneven.csv
    got 3 => must have 2 values, as the header has
DATA --source-file columns.jsonl
    got ['label', 'text'] => must have the column 'FunctionalCategory'
DATA --source-file null.jsonl
    got None => 'Behavior' must be a text
DATA --source-file numbers.jsonl
    got 1 => must have columns
DATA --without columns.jsonl
    columns.jsonl, line 1, must have a text as its prompt => give a file that
TRAIN --model ./no_config
    must hold config.json, and does not => copy the file there
EVALUATE --model ./no_weights
    model no_weights cannot be loaded => copy or download them again
EVALUATE --model ./cut_weights
    cut_weights/model.safetensors must be a whole safetensors file => copy or download it again
EVALUATE --model ./no_layer
    1 missing (model.layers.1.mlp.down_proj.weight) => save or download all of it again
PLAN --model ./bad_config
    bad_config/config.json must hold a JSON object => copy or download it again
PLAN --model ./list_config
    got a list => copy or download it again
PLAN --model ./deep_config
    values nested too deeply => copy or download it again
PLAN --model ./other_config
    model type `nowhere` => copy or download them again
SHOW --tokenizer ./bad_tokenizer
    the tokenizer of bad_tokenizer cannot be loaded => copy or download them again
TRAIN --model ./cut_tokenizer
    the tokenizer of cut_tokenizer cannot be loaded => copy or download them again
TRAIN --model ./no_template
    must have a chat template, got none => use the chat model's tokenizer
TRAIN --model ./bad_template
    Expected an expression => take the one that the model came with
DISCOVER --base ./other_tokenizer
    got other vocabularies => give the model that the aligned one was made from
TRAIN --tokens cut_tokens
    cut_tokens is not a file of safety tokens => give one that `pact discover` wrote
SHOW --tokens lacking_tokens
    got ['ids'] => give one that `pact discover` wrote
EVALUATE --drift train.jsonl --reference ./base --tokens more_tokens
    got ['ids', 'others', 'weights'] => give one that `pact discover` wrote
SHOW --tokens nan_tokens
    weights must be finite and fp32 => give one that `pact discover` wrote
CACHE --tokens float_tokens
    got (8,) torch.float32 => give one that `pact discover` wrote
SHOW --tokens foreign_tokens
    \\x1b[31msomeone/else => run `pact discover` for this model
CONVERT --input notes.txt
    refuses (UnpicklingError) => must be a tensor or a dict of tensors
CONVERT --input zeros.pt
    got 9 zeros => must have a non-zero entry
CONVERT --input matrix.pt
    got (9, 9) torch.float32 => give the file of the safety direction
"""
