"""Writers of data set formats, for the tests: each shares nothing with the adapter that reads it back."""
