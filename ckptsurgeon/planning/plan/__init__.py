"""Plans. A plan says where the values of every destination tensor come from.

It is made from headers alone, and can be reviewed as JSON.
"""
