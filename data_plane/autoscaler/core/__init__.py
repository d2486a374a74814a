"""Pure scaling decisions: time and observations come in, actions go out."""
