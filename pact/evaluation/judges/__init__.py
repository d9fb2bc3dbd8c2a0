"""Who says whether an answer is a refusal.

verdict     what a judge takes and returns
keyword     English refusals, by their words
classifier  a sequence-classification model
guard       a generator that answers safe or unsafe, as Llama Guard does
registry    judges by name
"""
