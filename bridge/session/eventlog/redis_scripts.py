"""What the event log has Redis do in one step: each script is one session's.

A session's keys share a hash tag, so that Redis Cluster keeps them together:

    {stt:ID}:h   hash: the record, and `order`, the number of its owner's last command
    {stt:ID}:e   stream: its events, by their numbers (`<seq>-0`)
    {stt:ID}:d   it was deleted
    {stt:ID}:r   hash: for each node its receivers and when it said so
    {stt:ID}:c   channel: what its owner writes and announces

All of them expire by themselves. A command that Redis could not take at once (it hung, say) may be done long after its
sender gave it up and sent another; `order` goes up with each command of a node, and one that is late is left undone.
"""

from __future__ import annotations

from typing import Final

from bridge.cluster.script import NOW, Script

# KEYS: h e d r. ARGV: node, epoch, order, retention (ms), replace (0 or 1), field, value, …
CREATE: Final = Script(
    NOW
    + """
local h = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'order', 'ended')
if h[2] then
  if h[1] == ARGV[1] and h[3] == ARGV[3] then return 1 end -- this very command, sent again
  if ARGV[5] == '0' then return 0 end
  if not h[4] and tonumber(h[2]) > tonumber(ARGV[2]) then return 0 end
  if h[1] == ARGV[1] and tonumber(h[3]) > tonumber(ARGV[3]) then return 0 end
elseif ARGV[5] == '0' and redis.call('EXISTS', KEYS[3]) == 1 then
  return 0
end
redis.call('DEL', unpack(KEYS))
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', ARGV[2], 'order', ARGV[3], 'touched', now, unpack(ARGV, 6))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""
)

# KEYS: h e d, the channel. ARGV: node, epoch, order, retention (ms), progress, backend, code of `Closed` or '',
# then for each event: seq, kind, data. Answers the outcome and how many follow.
WRITE: Final = Script(
    NOW
    + """
local h = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'order', 'seq')
if not h[2] then
  if redis.call('EXISTS', KEYS[3]) == 1 then return {'deleted', 0} end
  return {'missing', 0}
end
if h[1] ~= ARGV[1] or h[2] ~= ARGV[2] or tonumber(h[3]) > tonumber(ARGV[3]) then return {'superseded', 0} end
local seq, lines, fresh = tonumber(h[4]), {}, {}
for i = 8, #ARGV, 3 do
  if tonumber(ARGV[i]) > seq + #fresh then
    if tonumber(ARGV[i]) ~= seq + #fresh + 1 then return {'missing', 0} end
    fresh[#fresh + 1] = i
  end
end
for _, i in ipairs(fresh) do
  redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'k', ARGV[i + 1], 'd', ARGV[i + 2])
  lines[#lines + 1] = ARGV[i + 1] .. '\\n' .. ARGV[i + 2] .. '\\n'
end
redis.call('HSET', KEYS[1], 'seq', seq + #fresh, 'order', ARGV[3], 'progress', ARGV[5], 'backend', ARGV[6],
           'touched', now)
local following = 0
if #fresh > 0 then
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'ended', now, 'code', ARGV[7]) end
  following = redis.call('PUBLISH', KEYS[4], table.concat(lines))
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {'written', following}
"""
)

# KEYS: h e. ARGV: node, order, retention (ms). Answers the record, empty if there is none.
CLAIM: Final = Script(
    NOW
    + """
local h = redis.call('HMGET', KEYS[1], 'epoch', 'ended')
if h[1] and not h[2] then
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'order', ARGV[2], 'touched', now)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return redis.call('HGETALL', KEYS[1])
"""
)

# KEYS: h e. ARGV: node, epoch, retention (ms), 1 to release it. Whether it is the node's, and goes on.
TOUCH: Final = Script(
    NOW
    + """
local h = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'ended')
if h[1] ~= ARGV[1] or h[2] ~= ARGV[2] or h[3] then return 0 end
redis.call('HSET', KEYS[1], 'touched', now)
if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'owner', '') end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
)

# KEYS: h e d r. ARGV: how long the tombstone stands (ms). Whether the session was known.
DELETE: Final = Script(
    """
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
redis.call('DEL', KEYS[2], KEYS[4])
redis.call('SET', KEYS[3], '1', 'PX', ARGV[1])
return 1
"""
)

# KEYS: r. ARGV: node, receivers, seconds after which a node that has not said it again is gone.
SET_RECEIVERS: Final = Script(
    NOW
    + """
local nodes = redis.call('HGETALL', KEYS[1])
for i = 1, #nodes, 2 do
  if now - string.match(nodes[i + 1], '%S+$') > tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], nodes[i]) end
end
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. now)
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return 1
"""
)

# KEYS: r. ARGV: the node that asks, the seconds as above. Receivers at the others.
RECEIVERS: Final = Script(
    NOW
    + """
local nodes, count = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #nodes, 2 do
  local said, at = string.match(nodes[i + 1], '^(%d+) (%S+)$')
  if nodes[i] ~= ARGV[1] and now - at <= tonumber(ARGV[2]) then count = count + tonumber(said) end
end
return count
"""
)
