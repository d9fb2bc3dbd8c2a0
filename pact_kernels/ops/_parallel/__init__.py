"""Heads whose vocabulary is sharded: the ops on each shard, and small all-reduces between."""
