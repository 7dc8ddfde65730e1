"""Files on their way in: pieces that come in any order, and where whole files lie until they are transcribed."""
