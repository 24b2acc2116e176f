"""Try-ons that outlive their connection: a job store in SQL, runners that take jobs from it."""
