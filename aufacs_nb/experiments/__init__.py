"""The whole pipeline with one call, and the questions of the paper asked of whole databases (§4)."""
