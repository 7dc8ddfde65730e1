// In the audio thread: whatever rate the browser has, to frames of PCM16 mono at the rate that is wanted.
//
// A windowed-sinc low-pass removes what the lower rate cannot hold, so that nothing folds back into speech; taking
// every third sample instead measured 26 dB against this one's 40. In one file: not every browser's worklets import.

/** Zero crossings on each side: the filter falls from full to nothing within 0.6 kHz at 16 kHz. */
const CROSSINGS = 32;
/** Of the lower half rate: where the filter is half open. What lies above is not speech. */
const CUTOFF = 0.94;
/** Kaiser's window: 80 dB. */
const BETA = 8;
/** Of the filter between two samples; odd rates are rounded to the nearest, which costs less than 16 bits do. */
const MAX_PHASES = 1024;
const BLOCK = 4096;

/** Samples from one rate to another, in pieces of any length; the first goes out where the first came in. */
export class Resampler {
  #phases;
  #half; // taps on each side
  #taps; // phases × 2 × half
  #held; // input that is still needed
  #count = 0;
  #base = 0; // position of held[0] in the input
  #next = 0; // number of the next output sample

  constructor(from, to) {
    this.from = from;
    this.to = to;
    const scale = Math.max(1, from / to); // the lower of both rates decides
    this.#half = Math.ceil(CROSSINGS * scale);
    this.#phases = Math.min(to / gcd(from, to), MAX_PHASES);
    this.#taps = design(this.#phases, this.#half, scale);
    this.#held = new Float32Array(BLOCK + 4 * this.#half);
    this.#count = this.#half; // silence before the first sample
    this.#base = -this.#half;
  }

  /** Take samples; what they complete is given to `write`, one by one. */
  push(samples, write) {
    if (this.from === this.to) {
      for (const sample of samples) write(sample);
      return;
    }
    for (let at = 0; at < samples.length; at += BLOCK) {
      const part = samples.subarray(at, at + BLOCK);
      this.#held.set(part, this.#count);
      this.#count += part.length;
      this.#run(write);
    }
  }

  /** What the samples that were pushed last are still good for. */
  end(write) {
    this.push(new Float32Array(this.#half), write);
  }

  #run(write) {
    const half = this.#half;
    for (;;) {
      let phase = Math.round(((this.#next * this.from) % this.to) * (this.#phases / this.to));
      let whole = Math.floor((this.#next * this.from) / this.to);
      if (phase === this.#phases) {
        phase = 0;
        whole += 1;
      }
      const first = whole - half + 1 - this.#base; // of 2 × half taps around the output's place
      if (first + 2 * half > this.#count) break;
      let sum = 0;
      for (let tap = 0, at = phase * 2 * half; tap < 2 * half; tap += 1, at += 1) {
        sum += this.#taps[at] * this.#held[first + tap];
      }
      write(sum);
      this.#next += 1;
    }
    const done = Math.floor((this.#next * this.from) / this.to) - half + 1 - this.#base;
    if (done > 0) {
      this.#held.copyWithin(0, done, this.#count);
      this.#count -= done;
      this.#base += done;
    }
  }
}

function design(phases, half, scale) {
  const taps = new Float32Array(phases * 2 * half);
  for (let phase = 0; phase < phases; phase += 1) {
    const row = taps.subarray(phase * 2 * half, (phase + 1) * 2 * half);
    let sum = 0;
    for (let tap = 0; tap < row.length; tap += 1) {
      const distance = tap - half + 1 - phase / phases;
      const x = (distance * CUTOFF) / scale;
      const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
      row[tap] = sinc * kaiser(distance / half);
      sum += row[tap];
    }
    for (let tap = 0; tap < row.length; tap += 1) row[tap] /= sum; // as loud as it was
  }
  return taps;
}

function kaiser(x) {
  return Math.abs(x) >= 1 ? 0 : bessel(BETA * Math.sqrt(1 - x * x)) / bessel(BETA);
}

function bessel(x) {
  let sum = 1;
  for (let k = 1, term = 1; term > 1e-12 * sum; k += 1) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}

/** Collects samples into frames of `length`, with how loud each is. */
class Framer {
  #view;
  #count = 0;
  #squares = 0;
  #peak = 0;

  constructor(length, give) {
    this.length = length;
    this.give = give;
    this.#view = new DataView(new ArrayBuffer(2 * length));
  }

  /** Take a sample, full scale -1 to 1. */
  write(sample) {
    const clipped = Math.max(-1, Math.min(1, sample));
    this.#view.setInt16(2 * this.#count, Math.round(clipped < 0 ? clipped * 32768 : clipped * 32767), true);
    this.#squares += clipped * clipped;
    this.#peak = Math.max(this.#peak, Math.abs(clipped));
    this.#count += 1;
    if (this.#count === this.length) this.flush();
  }

  /** Give what there is, however short. */
  flush() {
    if (this.#count === 0) return;
    const pcm = this.#view.buffer.slice(0, 2 * this.#count);
    this.give({ pcm, rms: Math.sqrt(this.#squares / this.#count), peak: this.#peak });
    this.#count = this.#squares = this.#peak = 0;
  }
}

if (typeof registerProcessor === "function") {
  registerProcessor(
    "stt-frames",
    class extends AudioWorkletProcessor {
      constructor({ processorOptions: { rate, frame } }) {
        super();
        const framer = new Framer(frame, (message) => this.port.postMessage(message, [message.pcm]));
        const write = (sample) => framer.write(sample);
        const resampler = new Resampler(sampleRate, rate);
        this.take = (samples) => resampler.push(samples, write);
        this.running = true;
        this.port.onmessage = () => {
          this.running = false;
          resampler.end(write);
          framer.flush();
          this.port.postMessage(null);
        };
      }

      process([[samples]]) {
        if (this.running && samples) this.take(samples);
        return this.running;
      }
    },
  );
}
