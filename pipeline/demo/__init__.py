"""`backlight demo`: photos that are painted here, with exact boxes, and a small CNN for them."""
