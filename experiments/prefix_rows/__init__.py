"""Speed of the prefix-rows kernel against dense prefill attention."""
