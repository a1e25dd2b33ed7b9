"""From a sweep file to trials with identities, and how long they will take."""
