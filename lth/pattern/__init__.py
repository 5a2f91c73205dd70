"""What shape may a mask have, and over what are scores ranked?

A pattern is called (scores, mask, sparsity, model) and returns a Mask inside `mask`.
scores: a float CPU tensor for each name of the mask, of its shape; higher survives; finite where kept. sparsity: in
[0, 1), a fraction of what the pattern's own docstring says, of the whole network and not of the survivors. model: the
network, on any device, to be read only (its graph; where it has an attribute input_shape, that is what it was built
for). A pattern is pure: the same arguments give the same mask, nothing given is changed, no generator is used. Equal
scores are ordered by position, the first one survives. What cannot be drawn is a ValueError of one line. One that does
not choose weights one by one has the class attribute by_weight = False: equal scores in a layer then decide nothing.
note(model) may say, in a line, what a user should know before anything trains.
"""
