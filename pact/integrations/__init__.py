"""The method inside the trainers that people run.

transformers_models  `pact.patch`: a model whose forward returns the fused loss
trl                  `PactSFTTrainer`
mixin                `PatchedTrainer`, before any other trainer
axolotl              `PactPlugin`
torchtitan           `FusedCrossEntropyLoss`, without the pull on the safety tokens
"""
