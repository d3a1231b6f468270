"""The demo's own material: photos that are made up with exact boxes, and a small CNN for them."""
