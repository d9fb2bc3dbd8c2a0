"""Safety tokens: those on which an aligned model's refusals differ most from its base model's."""

from pact.discovery.discover import DiscoverConfig, discover, run_discover
from pact.discovery.tokens import SafetyTokens

__all__ = ["DiscoverConfig", "SafetyTokens", "discover", "run_discover"]
