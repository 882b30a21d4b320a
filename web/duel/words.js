/** The duel's words in the host's language; English where there is no translation. */

import { translations } from '../pad/translations.js'

const ENGLISH = {
  label: 'Which is better?',
  ask: 'Which is better?',
  votes: 'Vote {number}',
  first: 'The left one is better (1)',
  second: 'The right one is better (2)',
  equal: 'Equal (0)',
  bad: 'Both bad (x)',
  undo: 'Undo',
  undoHelp: 'Take back the last vote (Backspace)',
  auto: 'Next pair by itself',
  waiting: 'Making the next pair\u2026',
  stale: 'Show the next pair',
  gone: 'The pictures are gone. Show them again',
  unconnected: 'Connect duel to Preference Duel',
  linked: 'The votes come from a link: type them there',
  best: 'Best so far',
  kl: 'KL {value}',
  legend: 'Brighter: better. Smaller: not sure yet.',
  spread: 'The lines show where the best may lie.',
  take: 'Take it',
  takeHelp: 'Write the best preference into {title}',
  takeNone: 'Connect Preference Weights to the same Load Reward LoRAs, or use the output best',
  takeUnclear: 'The copies of a subgraph have a Preference Weights each: use the output best',
  takenShared: 'Written into {title}, which {number} copies of a subgraph share',
  takenByOrder: 'Written into {title} in the order of its LoRAs, because the pair was made with others',
  narrow: 'Again from here',
  narrowHelp: 'Look further only near the best preference',
  taken: 'Written into {title}',
  shade: 'Shade what the votes say',
  shading: 'Darker: better by your votes. Dots: not sure yet. Ring: best so far.',
  compare: 'Vote on two of these pictures\u2026',
  pick: 'Click two pictures, then say which is better',
  written: 'Vote {number} is written. Pick two more, or close',
  close: 'Close'
}

/** @type {Record<string, typeof ENGLISH> & { en: typeof ENGLISH }} */
const WORDS = {
  en: ENGLISH,
  zh: {
    label: '哪一张更好？',
    ask: '哪一张更好？',
    votes: '第 {number} 次投票',
    first: '左边更好 (1)',
    second: '右边更好 (2)',
    equal: '一样好 (0)',
    bad: '都不好 (x)',
    undo: '撤销',
    undoHelp: '收回上一次投票 (Backspace)',
    auto: '自动生成下一对',
    waiting: '正在生成下一对\u2026',
    stale: '显示下一对',
    gone: '图片已不存在。重新显示',
    unconnected: '请将 duel 连接到“偏好对决”',
    linked: '投票来自连线：请在那里输入',
    best: '目前最佳',
    kl: 'KL {value}',
    legend: '越亮越好；点越小越不确定。',
    spread: '线段表示最佳值可能的范围。',
    take: '采用',
    takeHelp: '将最佳偏好写入 {title}',
    takeNone: '请将“偏好权重”连接到同一个“加载奖励 LoRA”，或使用输出 best',
    takeUnclear: '子图的各个副本各有一个“偏好权重”：请使用输出 best',
    takenShared: '已写入 {title}，子图的 {number} 个副本共用它',
    takenByOrder: '已按 LoRA 顺序写入 {title}，因为这一对是用其他 LoRA 生成的',
    narrow: '从这里继续',
    narrowHelp: '之后只在最佳偏好附近寻找',
    taken: '已写入 {title}',
    shade: '用阴影显示投票结果',
    shading: '越深越好；圆点表示尚不确定；圆环为目前最佳。',
    compare: '比较其中两张图片\u2026',
    pick: '点击两张图片，再选择哪一张更好',
    written: '已写入第 {number} 次投票。可再选两张，或关闭',
    close: '关闭'
  }
}

export const { setLanguage, say } = translations(WORDS)
