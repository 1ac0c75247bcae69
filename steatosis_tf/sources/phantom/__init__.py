"""Simulated frames with the truth behind them."""
