"""A training kept on disk: to be resumed, or to be begun with."""
