"""Studies after 2302.11521: prompt tuning, in-context learning, and both."""
