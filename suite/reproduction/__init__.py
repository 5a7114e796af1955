"""`suite reproduce`: a published table under its published protocol, beside what comes out here."""
