"""How the schema came to be what it is: one file a step in `versions`, run by `store.db.open_database`."""
