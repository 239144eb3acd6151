"""An HTTP service: events in, recommendations out, from states that are advanced by each event."""
