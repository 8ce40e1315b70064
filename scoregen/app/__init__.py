"""The application: configurations, the command line, reports. The only floor that knows ml_collections and flags."""
