"""Ratios measured side by side in one run; nothing here gates a test. See docs/performance.md."""
