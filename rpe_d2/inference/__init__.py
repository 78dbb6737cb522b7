"""From pictures to predictions, without a data set."""
