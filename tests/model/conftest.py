"""Parts that the tests of `model/` share."""
