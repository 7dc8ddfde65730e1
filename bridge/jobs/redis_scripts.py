"""What the store of jobs has Redis do in one step.

All keys share a hash tag, so that Redis Cluster keeps them together; scripts put them together from `KEYS[1]`, the
prefix, because it is they that choose the job:

    {stt:jobs}:j:ID        hash: the job
    {stt:jobs}:r:ID        its result
    {stt:jobs}:q:BACKEND   sorted set: jobs that wait, by when they may be begun
    {stt:jobs}:l:BACKEND   sorted set: jobs that run, by when their lease runs out
    {stt:jobs}:o:OWNER     sorted set: an owner's jobs, by when they were made
    {stt:jobs}:e           sorted set: jobs that have ended, by when
    {stt:jobs}:n           sorted set: jobs whose owner is to be told, by when
    {stt:jobs}:b           hash: the files of jobs that have not ended
    {stt:jobs}:c           hash: how many jobs are in each state
    {stt:jobs}:changes     channel: the names of jobs that change; `stop:ID` to who works on it

Each may be done twice, where the first answer was lost: the second changes nothing that matters. A `claim` that nobody
hears of is a lease that runs out.
"""

from __future__ import annotations

from typing import Final

from bridge.cluster.script import NOW, Script

PREFIX: Final = "{stt:jobs}:"

_COMMON: Final = (
    NOW
    + """
local P = KEYS[1]
local function after(seconds) return string.format('%.6f', tonumber(now) + tonumber(seconds)) end
local function made(created) -- clocks differ: not later than now
  return tonumber(created) < tonumber(now) and created or now
end
local function state(id, to, ...)
  local key = P .. 'j:' .. id
  local from = redis.call('HGET', key, 'state')
  if from then redis.call('HINCRBY', P .. 'c', from, -1) end
  redis.call('HINCRBY', P .. 'c', to, 1)
  redis.call('HSET', key, 'state', to, ...)
  redis.call('HINCRBY', key, 'version', 1)
  redis.call('PUBLISH', P .. 'changes', id)
end
local function finish(id)
  local key = P .. 'j:' .. id
  local h = redis.call('HMGET', key, 'backend', 'blob', 'told')
  redis.call('ZREM', P .. 'q:' .. h[1], id)
  redis.call('ZREM', P .. 'l:' .. h[1], id)
  redis.call('HDEL', P .. 'b', h[2])
  redis.call('ZADD', P .. 'e', now, id)
  redis.call('HSET', key, 'finished', now)
  if h[3] == '1' then
    redis.call('HSET', key, 'notice', 'pending')
    redis.call('ZADD', P .. 'n', now, id)
  end
end
local function forget(id)
  local key = P .. 'j:' .. id
  local h = redis.call('HMGET', key, 'owner', 'state')
  redis.call('DEL', key, P .. 'r:' .. id)
  redis.call('ZREM', P .. 'e', id)
  redis.call('ZREM', P .. 'n', id)
  if h[1] then
    redis.call('ZREM', P .. 'o:' .. h[1], id)
    redis.call('HINCRBY', P .. 'c', h[2], -1)
  end
  redis.call('PUBLISH', P .. 'changes', id)
end
local function has_ended(s) return s ~= 'queued' and s ~= 'running' end
"""
)

# KEYS: the prefix; so have all. ARGV: id, owner, backend, blob, fingerprint, told, created, terms, jobs that may wait.
# Answers what became of it, and the job.
SUBMIT: Final = Script(
    _COMMON
    + """
local id, key = ARGV[1], P .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', key, 'owner', 'fingerprint')
if h[1] then
  if h[1] ~= ARGV[2] or h[2] ~= ARGV[5] then return {'conflict', {}} end
  return {'known', redis.call('HGETALL', key)}
end
if tonumber(redis.call('HGET', P .. 'c', 'queued') or '0') >= tonumber(ARGV[9]) then return {'full', {}} end
state(id, 'queued', 'id', id, 'owner', ARGV[2], 'backend', ARGV[3], 'blob', ARGV[4], 'fingerprint', ARGV[5],
      'told', ARGV[6], 'created', ARGV[7], 'terms', ARGV[8])
redis.call('ZADD', P .. 'q:' .. ARGV[3], made(ARGV[7]), id)
redis.call('ZADD', P .. 'o:' .. ARGV[2], ARGV[7], id)
redis.call('HSET', P .. 'b', ARGV[4], id)
return {'new', redis.call('HGETALL', key)}
"""
)

# ARGV: id. Answers the job, empty if there is none.
CANCEL: Final = Script(
    _COMMON
    + """
local key = P .. 'j:' .. ARGV[1]
local s = redis.call('HGET', key, 'state')
if s and not has_ended(s) then
  state(ARGV[1], 'cancelled')
  finish(ARGV[1])
  redis.call('PUBLISH', P .. 'changes', 'stop:' .. ARGV[1])
end
return redis.call('HGETALL', key)
"""
)

# ARGV: id.
DELETE: Final = Script(
    _COMMON
    + """
local s = redis.call('HGET', P .. 'j:' .. ARGV[1], 'state')
if not s or not has_ended(s) then return 0 end
forget(ARGV[1])
return 1
"""
)

# ARGV: backend, lease in seconds, times that a worker may die, the code and the sentence of a job where more did.
# Answers the job, empty if there is none to be begun.
CLAIM: Final = Script(
    _COMMON
    + """
local q, l = P .. 'q:' .. ARGV[1], P .. 'l:' .. ARGV[1]
for _, id in ipairs(redis.call('ZRANGEBYSCORE', l, '-inf', '(' .. now, 'LIMIT', 0, 100)) do
  local key = P .. 'j:' .. id
  redis.call('ZREM', l, id)
  if redis.call('HINCRBY', key, 'lost', 1) > tonumber(ARGV[3]) then
    state(id, 'failed', 'code', ARGV[4], 'message', ARGV[5])
    finish(id)
  else
    state(id, 'queued', 'seconds', '0')
    redis.call('ZADD', q, made(redis.call('HGET', key, 'created')), id)
  end
end
local found = redis.call('ZRANGEBYSCORE', q, '-inf', now, 'LIMIT', 0, 1)
if #found == 0 then return {} end
local id, key = found[1], P .. 'j:' .. found[1]
redis.call('ZREM', q, id)
redis.call('ZADD', l, after(ARGV[2]), id)
redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HSETNX', key, 'started', now)
state(id, 'running', 'seconds', '0')
return redis.call('HGETALL', key)
"""
)

# ARGV: id, attempt, lease in seconds, then fields and values.
BEAT: Final = Script(
    _COMMON
    + """
local key = P .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', key, 'attempt', 'state', 'backend')
if h[1] ~= ARGV[2] or h[2] ~= 'running' then return 0 end
redis.call('ZADD', P .. 'l:' .. h[3], after(ARGV[3]), ARGV[1])
redis.call('HSET', key, unpack(ARGV, 4))
redis.call('HINCRBY', key, 'version', 1)
redis.call('PUBLISH', P .. 'changes', ARGV[1])
return 1
"""
)

# ARGV: id, attempt, the state, 1 if there is a result, the result, then fields and values.
FINISH: Final = Script(
    _COMMON
    + """
local key = P .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', key, 'attempt', 'state')
if h[1] ~= ARGV[2] then return 0 end
if h[2] == ARGV[3] then return 1 end -- this very command, sent again
if h[2] ~= 'running' then return 0 end
if ARGV[4] == '1' then redis.call('SET', P .. 'r:' .. ARGV[1], ARGV[5]) end
state(ARGV[1], ARGV[3], unpack(ARGV, 6))
finish(ARGV[1])
return 1
"""
)

# ARGV: id, attempt, seconds until it may be begun again (0: before those that came later), failures to add.
PUT_BACK: Final = Script(
    _COMMON
    + """
local key = P .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', key, 'attempt', 'state', 'backend', 'created')
if h[1] ~= ARGV[2] then return 0 end
if h[2] == 'queued' then return 1 end
if h[2] ~= 'running' then return 0 end
redis.call('ZREM', P .. 'l:' .. h[3], ARGV[1])
redis.call('ZADD', P .. 'q:' .. h[3], tonumber(ARGV[3]) > 0 and after(ARGV[3]) or made(h[4]), ARGV[1])
redis.call('HINCRBY', key, 'failures', ARGV[4])
state(ARGV[1], 'queued', 'seconds', '0')
return 1
"""
)

# ARGV: sorted sets. Answers the seconds until the first of them all, '' if they are empty.
UNTIL: Final = Script(
    _COMMON
    + """
local least
for _, name in ipairs(ARGV) do
  local first = redis.call('ZRANGE', P .. name, 0, 0, 'WITHSCORES')
  if first[2] and (not least or tonumber(first[2]) < least) then least = tonumber(first[2]) end
end
if not least then return '' end
return string.format('%.6f', math.max(0, least - tonumber(now)))
"""
)

# ARGV: seconds for which nobody else is given it. Answers the job, empty if nobody is to be told.
CLAIM_NOTICE: Final = Script(
    _COMMON
    + """
local found = redis.call('ZRANGEBYSCORE', P .. 'n', '-inf', now, 'LIMIT', 0, 1)
if #found == 0 then return {} end
local key = P .. 'j:' .. found[1]
redis.call('ZADD', P .. 'n', after(ARGV[1]), found[1])
redis.call('HINCRBY', key, 'notices', 1)
redis.call('HINCRBY', key, 'version', 1)
return redis.call('HGETALL', key)
"""
)

# ARGV: id, notices, what became of it, seconds until it is tried again.
SETTLE_NOTICE: Final = Script(
    _COMMON
    + """
local key = P .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', key, 'notices', 'notice')
if h[1] ~= ARGV[2] or h[2] ~= 'pending' then return 0 end
if ARGV[3] == 'pending' then
  redis.call('ZADD', P .. 'n', after(ARGV[4]), ARGV[1])
else
  redis.call('ZREM', P .. 'n', ARGV[1])
end
redis.call('HSET', key, 'notice', ARGV[3])
redis.call('HINCRBY', key, 'version', 1)
redis.call('PUBLISH', P .. 'changes', ARGV[1])
return 1
"""
)

# ARGV: retention in seconds, jobs at once. How many were forgotten.
SWEEP: Final = Script(
    _COMMON
    + """
local old = redis.call('ZRANGEBYSCORE', P .. 'e', '-inf', '(' .. after(-tonumber(ARGV[1])), 'LIMIT', 0, ARGV[2])
for _, id in ipairs(old) do forget(id) end
return #old
"""
)
