// Audio that may have to be sent again, addressed by its position in the whole session.

/** Bytes `start` to `end` of all that was ever appended. Takes and forgets in constant time. */
export class Ring {
  #chunks = []; // {at, bytes}, in order and without gaps
  #first = 0; // index of the first that is kept; those before it are gone
  #start = 0;
  #end = 0;

  get start() {
    return this.#start;
  }

  get end() {
    return this.#end;
  }

  get held() {
    return this.#end - this.#start;
  }

  /** Keep a copy of these bytes (`Uint8Array`). */
  append(bytes) {
    if (bytes.length === 0) return;
    this.#chunks.push({ at: this.#end, bytes: bytes.slice() });
    this.#end += bytes.length;
  }

  /** Up to `size` bytes from position `at` on. */
  piece(at, size) {
    const end = Math.min(at + size, this.#end);
    const result = new Uint8Array(Math.max(end - at, 0));
    for (let index = this.#find(at), done = at; done < end; index += 1) {
      const chunk = this.#chunks[index];
      const part = chunk.bytes.subarray(done - chunk.at, end - chunk.at);
      result.set(part, done - at);
      done += part.length;
    }
    return result;
  }

  /** Let go of what lies before position `to`. */
  forget(to) {
    this.#start = Math.max(this.#start, Math.min(to, this.#end));
    while (this.#first < this.#chunks.length) {
      const { at, bytes } = this.#chunks[this.#first];
      if (at + bytes.length > this.#start) break;
      this.#chunks[this.#first] = null;
      this.#first += 1;
    }
    if (this.#first > 256 && this.#first * 2 > this.#chunks.length) {
      this.#chunks.splice(0, this.#first);
      this.#first = 0;
    }
  }

  #find(at) {
    if (at < this.#start) throw new RangeError(`byte ${at} is forgotten; what is kept begins with ${this.#start}`);
    let low = this.#first;
    let high = this.#chunks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#chunks[middle].at <= at) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
