"""The paper as pure functions on tensors: images in, saliency maps out; maps in, scores out."""
