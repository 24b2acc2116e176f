"""Try-ons that outlive their connection: a ledger in SQL, runners that take jobs from it."""
