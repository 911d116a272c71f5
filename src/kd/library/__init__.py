"""Models and data by name: what there is, where it comes from, and how it gets into the store and stays right there.

Nothing here imports torch unless it has to rewrite a pickled checkpoint.
"""
