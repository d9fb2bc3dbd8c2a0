"""From conversations to tensors: load, render, mark the answers, batch.

The data flow one way, one module a step, and nothing is imported before it is asked for:

    sources     a file, folder, hub name or list   ->  rows (`jsonl`: of a file, by line)
    examples    rows                               ->  conversations (`conversation`: their fields)
    rendering   a conversation                     ->  text by its chat template, and its tokens
    turns       a rendered conversation            ->  where the assistant's own words stand
    template    a conversation                     ->  token ids, labels where the assistant speaks
    dataset     all conversations                  ->  an Arrow table of ids and labels
    batches     their lengths                      ->  batches of equal cost, for inference
    collate     a batch of examples                ->  padded tensors, with the rows of `spans`
    spans       labels                             ->  answer rows, and the post-only inputs
"""
