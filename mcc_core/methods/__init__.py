"""The methods: what one is, the list of them, and a folder each."""
