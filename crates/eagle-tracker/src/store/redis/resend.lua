-- Marks nodes whose latest announces went elsewhere: the next one is answered as if they were not known.
--
-- KEYS: prefix
-- ARGV: nodes
local prefix = KEYS[1]
for _, id in ipairs(ARGV) do
  if redis.call('EXISTS', prefix .. 'node:' .. id) == 1 then
    redis.call('HSET', prefix .. 'node:' .. id, 'resend', '1')
  end
end
return 1
