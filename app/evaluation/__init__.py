"""How good the parts of the application are, on data whose truth is known: statistics, tables, pictures, pages."""
