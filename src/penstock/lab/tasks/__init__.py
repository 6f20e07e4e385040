"""Task families of the built-in model: problems with one exact answer, in English and Chinese."""
