#!/bin/sh
# From a spreadsheet to a fine-tuned model, in two processes, with an evaluation on the way.
#
#   sh examples/from_csv.sh MODEL TOKENS QUESTIONS.csv OUTPUT
#
# QUESTIONS.csv has the columns "question" and "answer"; TOKENS is the file of `pact discover`.
set -eu
MODEL=$1 TOKENS=$2 DATA=$3 OUTPUT=$4
PYTHON=${PYTHON:-python}
MAX_STEPS=${MAX_STEPS:-100}

set -- --model "$MODEL" --tokens "$TOKENS" --train-file "$DATA" --eval-file "$DATA" \
    --columns '{"instruction": "question", "output": "answer"}' \
    --max-steps "$MAX_STEPS" --batch-size 4 --learning-rate 1e-4 --output-dir "$OUTPUT"

# The plan and the first batch, with its labelled tokens in colour; nothing is trained.
"$PYTHON" -m pact train "$@" --dry-run

# Two processes; the best weights by the loss on --eval-file are kept. Better: another file there.
"$PYTHON" -m accelerate.commands.launch --num_processes 2 -m pact train "$@"

# One model without adapters, for whatever serves it.
"$PYTHON" -m pact merge --adapters "$OUTPUT" --output-dir "$OUTPUT-merged"
