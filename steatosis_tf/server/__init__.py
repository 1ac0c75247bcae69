"""The pages that a person opens in the browser, on one server."""
