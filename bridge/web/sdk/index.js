// The JavaScript SDK of STT Bridge. Types and contracts: index.d.ts. How to use it: docs/clients.md.

export { SttClient } from "./client.js";
export { SttError } from "./errors.js";
export { transcribeFile } from "./files.js";
export { Microphone, microphones } from "./microphone.js";
export { SttReceiver } from "./receiver.js";
export { transcriptFile, writeTranscript } from "./transcript.js";
