"""From conversations to tensors: load, render, mark the answers, batch.

The data flow one way, one module a step, and nothing is imported before it is asked for:

    examples    a file, folder, hub name or list   ->  conversations
    template    a conversation                     ->  token ids, labels where the assistant speaks
    dataset     all conversations                  ->  an Arrow table of ids and labels
    batches     their lengths                      ->  batches of equal cost, for inference
    collate     a batch of examples                ->  padded tensors, with the rows of `spans`
    spans       labels                             ->  answer rows, and the post-only inputs
"""
