"""Commands for people who work on this project, and the modules behind them."""
