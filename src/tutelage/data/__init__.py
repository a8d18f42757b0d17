"""The one set of readers and writers: foreign files in, our records and immutable snapshots out.  No torch."""
