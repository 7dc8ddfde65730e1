/** The JavaScript SDK of STT Bridge: live speech to text with resume, files as jobs, the microphone, transcripts. */

/** A key or token, or a function that has one: asked at each connection, and again when the server refuses the last. */
export type TokenSource =
  | string
  | null
  | ((
      reason: "connect" | "unauthorized" | "request",
    ) => string | null | undefined | Promise<string | null | undefined>);

/** What may be said in `start`; docs/protocol.md has the meaning of every field. Raw samples only. */
export interface StartFields {
  encoding?: "pcm_s16le" | "pcm_s16be" | "pcm_f32le" | "pcm_s8" | "pcm_u8" | "mulaw" | "alaw";
  /** Hz, 8000 to 192000; 16000 by default. */
  sample_rate?: number;
  channels?: number;
  channel_mode?: "mix" | "separate";
  /** BCP 47, or `auto`. */
  language?: string;
  /** One of `GET /v1/backends`. */
  backend?: string;
  partials?: boolean;
  words?: boolean;
  phrases?: string[];
  vad?: boolean;
  endpoint_silence_ms?: number;
  speech_padding_ms?: number;
  speech_threshold?: number;
  denoise?: boolean;
  /** A name of your own, 16 characters or more: whoever knows it may receive the session. */
  session_id?: string;
  store?: boolean;
}

/** Times in seconds. */
export interface ReconnectOptions {
  /** How long even the first connection is tried again, after failures that may pass (15). */
  firstSeconds?: number;
  /** How long after a break it is tried; null: as long as the server holds the session (null). */
  giveUpSeconds?: number | null;
  /** The wait before attempt n is random, up to base * 2^n and never more than most (0.1, 2). */
  baseSeconds?: number;
  mostSeconds?: number;
  /** Audio that is kept to be sent again (120). */
  ringSeconds?: number;
  /** Audio on its way beyond the server's last ack (10). */
  windowSeconds?: number;
  /** A server that owes an answer and says nothing for so long counts as gone (15). */
  silenceSeconds?: number;
}

export interface ConnectionOptions {
  /** Any address of the bridge (`https://…`, `wss://…/v1/stream`); unset: where the page comes from. */
  server?: string | URL;
  token?: TokenSource;
  /** false: never. */
  reconnect?: ReconnectOptions | false;
}

export interface Word {
  text: string;
  start: number;
  end: number;
  /** 0 to 1. */
  confidence?: number;
  speaker?: string;
}

/** Times are seconds from the first sample of the session. */
export interface Partial {
  type: "partial";
  text: string;
  start: number;
  end: number;
  stability?: number;
  /** How many characters (code points) of the text, from its beginning, are certain to stay. */
  committed?: number;
  words?: Word[];
  channel?: number;
}

export interface Final {
  type: "final";
  seq: number;
  text: string;
  start: number;
  end: number;
  words?: Word[];
  confidence?: number;
  language?: string;
  channel?: number;
}

export interface Ready {
  type: "ready";
  session_id: string;
  backend: string;
  language: string;
  encoding: string;
  sample_rate: number;
  channels: number;
  partials: boolean;
  resume_token: string | null;
  resume_seconds: number;
  resumed: boolean;
  received: number;
  received_bytes: number;
  finalized: number;
  limits: { session_seconds: number; idle_seconds: number; message_bytes: number };
}

export interface Joined {
  type: "joined";
  session_id: string;
  state: "waiting" | "live" | "held" | "ended";
  last_seq: number;
}

export interface Ack {
  type: "ack";
  received: number;
  finalized: number;
}

export interface Closed {
  type: "closed";
  code: string;
  received: number;
  finalized: number;
  /** Seconds of audio. */
  duration: number;
  seq?: number;
}

export interface Notice {
  code: string;
  message: string;
}

/** `stopping`: the last words are awaited. `ended`: for good; `end` says how. */
export type State = "idle" | "connecting" | "open" | "reconnecting" | "stopping" | "ended";

/** `code`: of docs/protocol.md, of the microphone, or `unreachable`, `connection_lost`, `protocol_fault`. */
export class SttError extends Error {
  constructor(code: string, message: string, options?: { retryable?: boolean; cause?: unknown });
  readonly code: string;
  /** Whether the same may succeed later. */
  readonly retryable: boolean;
}

/** Events of senders and receivers. Each is a `CustomEvent` with this `detail`. */
export interface SessionEvents {
  state: { state: State; reason: string | null };
  partial: Partial;
  final: Final;
  speech_started: { seq: number; start: number; channel?: number };
  speech_ended: { seq: number; end: number; channel?: number };
  ack: Ack;
  warning: Notice & { seq: number };
  error: Notice & { fatal: boolean; retryable: boolean };
  closed: Closed;
  /** Once, at the very end; `closed` null and `error` null: it was left by `close`. */
  end: { closed: Closed | null; error: SttError | null };
}

export interface SenderEvents extends SessionEvents {
  /** At each connection. */
  ready: Ready;
  /** More is kept than may be, for a server that is away: `send` takes nothing until there is room. */
  overflow: { seconds: number };
}

export interface ReceiverEvents extends SessionEvents {
  /** At each connection. */
  joined: Joined;
}

/** Sessions and microphones are `EventTarget`s; their events have names of their own, so the types do not say so. */
declare class Emitter<Events> {
  addEventListener<K extends keyof Events>(
    type: K,
    listener: (event: CustomEvent<Events[K]>) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof Events>(
    type: K,
    listener: (event: CustomEvent<Events[K]>) => void,
    options?: boolean | EventListenerOptions,
  ): void;
}

declare class Session<Events, Welcome> extends Emitter<Events> {
  readonly state: State;
  readonly closed: Closed | null;
  /** How often the session was resumed. */
  readonly reconnects: number;
  /** Resolves with `closed` (null after `close`), rejects with an `SttError`. Need not be awaited. */
  readonly done: Promise<Closed | null>;
  /** Connect. Resolves with the server's welcome; rejects with an `SttError`. Once. */
  start(): Promise<Welcome | null>;
  /** Leave at once, without the rest. */
  close(): void;
  /** The device has another network, or woke up: a dead connection is found out at once. */
  networkChanged(): void;
}

/** A session that this page speaks into. Whatever the connection does, each word is finalized once. */
export class SttClient extends Session<SenderEvents, Ready> {
  constructor(options?: ConnectionOptions & { start?: StartFields });
  readonly ready: Ready | null;
  /** Seconds of audio that `send` has taken. */
  readonly seconds: number;
  /** Seconds of audio that wait to be sent. */
  readonly behindSeconds: number;
  /**
   * Take audio, also before `start` and while there is no connection. false: there is no room, nothing was taken.
   * Throws after `stop`, and once the session is over.
   */
  send(audio: ArrayBuffer | ArrayBufferView): boolean;
  /** Resolves when `send` may take more, or the session is over: for files. */
  room(): Promise<void>;
  /** Finalize what was said so far; the session goes on. */
  flush(): void;
  /** No more audio. Resolves with `closed` after the last final; rejects as `done`. */
  stop(): Promise<Closed | null>;
}

/** A session that somebody else speaks into, without a gap or a repeat. */
export class SttReceiver extends Session<ReceiverEvents, Joined> {
  /** `from`: the first lasting message that is wanted (1: all that was said; null: only what comes). */
  constructor(options: ConnectionOptions & { session: string; from?: number | null; partials?: boolean });
  readonly joined: Joined | null;
}

export interface MicrophoneOptions {
  deviceId?: string | null;
  /** The browser's echo cancellation, noise suppression and gain control (false: engines hear better without). */
  processing?: boolean;
  /** Hz (16000). */
  rate?: number;
  /** Length of a frame (0.1). */
  frameSeconds?: number;
}

export interface MicrophoneEvents {
  /** PCM16 mono, little-endian; `rms` and `peak` from 0 to 1. */
  frame: { pcm: ArrayBuffer; rms: number; peak: number };
  /** For good: unplugged, or taken away. */
  lost: SttError;
  /** By a call or another app; `resumed` follows. */
  interrupted: null;
  resumed: null;
}

/** The microphone as frames. Open it in a click or a key press. */
export class Microphone extends Emitter<MicrophoneEvents> {
  constructor(options?: MicrophoneOptions);
  readonly label: string;
  /** Rejects with an `SttError`: `insecure_origin`, `microphone_denied`, `no_microphone`, `microphone_busy`, … */
  open(): Promise<void>;
  /** Give the last frame, and let go. */
  close(): Promise<void>;
}

/** The microphones that there are; named only once the user has allowed one. */
export function microphones(): Promise<MediaDeviceInfo[]>;

export interface Segment {
  text: string;
  start: number;
  end: number;
  words?: Word[];
  confidence?: number;
}

export interface FileOptions {
  server?: string | URL;
  token?: TokenSource;
  language?: string;
  /** One of `GET /v1/models`. */
  model?: string;
  progress?: (progress: { phase: "upload" | "queued" | "running"; percent: number | null }) => void;
  /** Calls the job off. */
  signal?: AbortSignal;
}

/** Have a file transcribed as a job of the server; rejects with an `SttError`, or the signal's reason. */
export function transcribeFile(
  file: Blob,
  options?: FileOptions,
): Promise<{ text: string; segments: Segment[]; job: Record<string, unknown> }>;

export type TranscriptFormat = "txt" | "srt" | "vtt" | "json";

/** Finals as text in a format. */
export function writeTranscript(finals: readonly Segment[], format: TranscriptFormat): string;

/** The same as a file. */
export function transcriptFile(finals: readonly Segment[], format: TranscriptFormat, name?: string): File;
